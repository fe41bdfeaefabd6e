//! What a BO publishes of a database is what its FOs read, whoever writes, whatever breaks: real nodes, real files, and SQLite's own
//! shell as the process that knows nothing of us.

mod commands;
mod faults;
mod go;
mod histories;
mod http;
mod killed;
mod layout;
mod privacy;
mod readers;
mod subscribers;
mod world;
