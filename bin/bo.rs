//! A back-office node: `horos-bo --data DIR` is `horos bo --data DIR`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    horos_nodes::main_as("bo", |_| {})
}
