//! Links the image by the hypervisor's script.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../boot/link.ld");
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rustc-link-arg-bins=-T{script}");
    println!("cargo:rustc-link-arg-bins=--no-dynamic-linker");
}
