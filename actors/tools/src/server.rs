//! What answers MCP's requests, whatever brought them.
