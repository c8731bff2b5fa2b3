"""Networks of the authors' release: TensorFlow's files, read without TensorFlow and converted once (docs/authors.md)."""

from .convert import convert, has_source, split_warning

__all__ = ["convert", "has_source", "split_warning"]
