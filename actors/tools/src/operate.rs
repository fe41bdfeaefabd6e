//! Tools made from the protocols of the node's own actors.
