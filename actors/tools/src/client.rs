//! An MCP client as an actor: over QUIC and HTTP, with reconnect.
