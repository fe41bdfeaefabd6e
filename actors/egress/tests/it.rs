//! What egress promises, kept against real sockets.
