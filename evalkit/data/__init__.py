"""Data: fetch the challenge's shards, make shards from documents, verify both."""
