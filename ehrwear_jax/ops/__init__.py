"""Implements operations that no library has, each in a folder of its own."""
