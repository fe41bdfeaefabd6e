//! Calls by route to other people's tools.
