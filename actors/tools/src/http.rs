//! Streamable HTTP, as a tower service for the node's port.
