//! MCP on a stream of QUIC: `mcp-quic-v1` and `horos-mcp-v1`.
