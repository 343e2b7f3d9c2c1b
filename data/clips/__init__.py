"""Shards of one's own videos, decoded once: small squares at a steady rate, quick to read."""
