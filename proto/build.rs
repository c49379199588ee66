//! Compiles the two `.proto` files with protox, so that no protoc has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=cri/api.proto");
    println!("cargo::rerun-if-changed=agent/agent.proto");

    let agent = protox::compile(["agent/agent.proto"], ["agent"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(agent)?;

    if env::var_os("CARGO_FEATURE_CRI").is_some() {
        let mut compiler = protox::Compiler::new(["cri"])?;
        compiler.open_file("api.proto")?;
        // Encoded by the compiler itself: prost's own types would drop options they do not know.
        let descriptor = PathBuf::from(env::var("OUT_DIR")?).join("cri.descriptor.bin");
        fs::write(descriptor, compiler.encode_file_descriptor_set())?;
        tonic_prost_build::configure()
            .build_transport(false)
            // Its fields are secrets: the crate has a Debug for it that shows none of them.
            .skip_debug(["runtime.v1.AuthConfig"])
            .compile_fds(compiler.file_descriptor_set())?;
    }
    Ok(())
}
