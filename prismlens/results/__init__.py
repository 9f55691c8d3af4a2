"""Per-item rows and their manifest, on disk and back; knows nothing of what they mean."""

from prismlens.results.environment import environment_manifest
from prismlens.results.folder import MANIFEST, check_free, write_whole
from prismlens.results.results import Results

__all__ = ["MANIFEST", "Results", "check_free", "environment_manifest", "write_whole"]
