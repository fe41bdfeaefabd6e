//! The router's strategy `mcp`: a route that leads to somebody's tool.
