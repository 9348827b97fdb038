//! The simulation's `getrandom` must be found by crates that ask the dynamic linker for it.

fn main() {
    println!("cargo::rustc-link-arg=-Wl,--export-dynamic-symbol=getrandom");
    println!("cargo::rerun-if-changed=build.rs");
}
