"""A result as one self-contained page: what it holds, its charts, and how they are put together.

Imports criteria and the ground. It lies below analysis, since a result writes itself as a page; it knows the result's
type for checking only.
"""
