//! `search_tools`: a handful of tools out of ten thousand.
