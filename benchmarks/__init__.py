"""Measurements, each against a peer in the same run on the same machine; nothing here is a test."""
