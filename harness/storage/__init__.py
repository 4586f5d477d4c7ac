"""What is kept on disk: the run folder and its lock, atomic writes, hashes, records, strict JSON and YAML."""

from harness.storage.atomic import atomic_path, need_space, storage_errors, write_text
from harness.storage.fingerprint import code_sha256, is_written, up_to_date
from harness.storage.hashing import dumps, sha256_bytes, sha256_file, sha256_json, sha256_large, sha256_tree
from harness.storage.records_io import (
    check_written,
    iter_records,
    read_json,
    read_record,
    read_records,
    read_scored,
    read_split,
    read_taught,
    read_typed,
    results_sha256,
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
    "code_sha256",
    "dumps",
    "is_written",
    "iter_records",
    "need_space",
    "read_json",
    "read_record",
    "read_records",
    "read_scored",
    "read_split",
    "read_taught",
    "read_typed",
    "results_sha256",
    "sealed",
    "sha256_bytes",
    "sha256_file",
    "sha256_json",
    "sha256_large",
    "sha256_tree",
    "storage_errors",
    "up_to_date",
    "write_json",
    "write_jsonl",
    "write_text",
]
