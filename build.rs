//! Prepares `docs/openapi.json` for the program, which serves it: without white space between its tokens, and compressed
//! to about a sixth (zlib). `src/http/api/openapi.rs` expands it. Without the feature `http` there is nothing to do.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "http")]
    openapi::compress()?;
    Ok(())
}

#[cfg(feature = "http")]
mod openapi {
    use std::error::Error;
    use std::path::PathBuf;
    use std::{env, fs};

    const DOCUMENT: &str = "docs/openapi.json";

    /// The best of zlib's levels.
    const LEVEL: u8 = 9;

    pub(super) fn compress() -> Result<(), Box<dyn Error>> {
        println!("cargo::rerun-if-changed={DOCUMENT}");
        let document: serde_json::Value = serde_json::from_slice(&fs::read(DOCUMENT)?)?;
        let compressed = miniz_oxide::deflate::compress_to_vec_zlib(&serde_json::to_vec(&document)?, LEVEL);
        let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
        Ok(fs::write(out.join("openapi.zlib"), compressed)?)
    }
}
