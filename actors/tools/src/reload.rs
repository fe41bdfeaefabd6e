//! From `control.db` to the tools in force.
