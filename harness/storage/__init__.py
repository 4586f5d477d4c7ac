"""What is kept on disk: the run folder and its lock, atomic writes, hashes, records, strict JSON and YAML."""

from harness.storage.atomic import atomic_path, need_space, storage_errors, write_text
from harness.storage.hashing import dumps, sha256_bytes, sha256_file, sha256_json, sha256_tree, source_sha256
from harness.storage.records_io import (
    check_written,
    iter_records,
    read_json,
    read_record,
    read_records,
    read_scored,
    read_split,
    sealed,
    write_json,
    write_jsonl,
)
from harness.storage.run_folder import RunFolder, check_name

__all__ = [
    "RunFolder",
    "atomic_path",
    "check_name",
    "check_written",
    "dumps",
    "iter_records",
    "need_space",
    "read_json",
    "read_record",
    "read_records",
    "read_scored",
    "read_split",
    "sealed",
    "sha256_bytes",
    "sha256_file",
    "sha256_json",
    "sha256_tree",
    "source_sha256",
    "storage_errors",
    "write_json",
    "write_jsonl",
    "write_text",
]
