//! Servers that answer late, never, too much, something else, or somewhere else.
