//! Links every attack with the runtime's linker script.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../rt/guest.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rustc-link-arg-bins=--build-id=none");
}
