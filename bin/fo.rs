//! A front-office node: `horos-fo --data DIR` is `horos fo --data DIR`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    horos_nodes::main_as("fo", |_| {})
}
