"""The metadata of the dataset as Croissant 1.0 (https://docs.mlcommons.org/croissant/docs/croissant-spec.html)."""

from __future__ import annotations

import hashlib
import json

FIELDS = {
    "question": "one question or request",
    "answer": "the reference answer",
    "references": "further right answers",
    "article": "the article asked about",
    "part": "the Part of that article",
    "kind": "what is asked for",
    "group": "rows of one article, Schedule, amendment or case",
    "answer_type": "short, list, yes-no or long",
    "must_mention": "points that the answer has to make; alternatives separated by |",
    "fact": "the fact, where it is asked in three ways",
    "twin": "a question that must not be answered and its answerable twin share it",
    "cites": "the articles, Schedules or amendments that the answer rests on",
    "verified_against": "the two copies of the text that bear the row out",
    "text_as_of": "the date of the text",
}
LISTS = {"references", "must_mention", "cites", "verified_against"}
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "jsonPath": "cr:jsonPath",
    "md5": "cr:md5",
    "recordSet": "cr:recordSet",
    "repeated": "cr:repeated",
    "sc": "https://schema.org/",
    "source": "cr:source",
}


def field(name: str) -> dict:
    """One field of the record set, read from the JSON list by its path."""
    made = {
        "@type": "cr:Field",
        "@id": f"pairs/{name}",
        "name": name,
        "description": FIELDS[name],
        "dataType": "sc:Text",
        "source": {"fileObject": {"@id": "constitution_qa.json"}, "extract": {"jsonPath": f"$[*].{name}"}},
    }
    return made | {"repeated": True} if name in LISTS else made


def render(text: str) -> str:
    """The metadata file for the text of `constitution_qa.json`."""
    data = text.encode("utf-8")
    described = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": "constitution_qa",
        "description": "Questions and answers on the Constitution of India as amended up to the 106th Amendment.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": "https://www.apache.org/licenses/LICENSE-2.0",
        "inLanguage": "en",
        "version": "2.0.0",
        "datePublished": "2026-11-25",
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "constitution_qa.json",
                "name": "constitution_qa.json",
                "contentUrl": "constitution_qa.json",
                "contentSize": f"{len(data)} B",
                "encodingFormat": "application/json",
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        ],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "pairs", "name": "pairs", "field": [field(name) for name in FIELDS]}
        ],
    }
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"
