//! What is printed at the start: the environment to paste, and a line to try for each client.

use std::net::SocketAddr;
use std::path::Path;

/// Text for people, whose `export` line programs can read too. `key` is a word of a shell.
pub(crate) fn text(api: SocketAddr, proxy: SocketAddr, key: &str, image: &str) -> String {
    let (api, proxy) = (url(api), url(proxy));
    format!(
        "export TENSORLAKE_API_URL={api} TENSORLAKE_API_KEY={key} TENSORLAKE_SANDBOX_PROXY_URL={proxy}\n\n\
         python3 -c 'from tensorlake.sandbox import Sandbox; s = Sandbox.create(); \
         print(s.run(\"uname\", [\"-a\"]).stdout); s.terminate()'\n\
         tl sbx run --image {image} -- uname -a\n\
         curl -s -H \"Authorization: Bearer $TENSORLAKE_API_KEY\" -d '{{\"timeout_secs\": 60}}' \
         $TENSORLAKE_API_URL/sandboxes; echo\n"
    )
}

/// What a shell replaces by the key of `--key-file`. The key itself would get into the log of a service.
pub(crate) fn key_in(file: &Path) -> String {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    format!("\"$(cat '{}')\"", file.to_string_lossy().replace('\'', "'\\''"))
}

/// The URL by which a client on this machine reaches the address. Clients know `127.0.0.1` as this machine, and no other
/// address.
fn url(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        return format!("http://127.0.0.1:{}", address.port());
    }
    format!("http://{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_one_line_that_a_shell_takes() {
        let text = text("0.0.0.0:8900".parse().unwrap(), "127.0.0.1:9443".parse().unwrap(), "k", "debian");
        let first = text.lines().next().unwrap();
        let right = "export TENSORLAKE_API_URL=http://127.0.0.1:8900 TENSORLAKE_API_KEY=k \
                     TENSORLAKE_SANDBOX_PROXY_URL=http://127.0.0.1:9443";
        assert_eq!(first, right);
        assert_eq!(text.lines().filter(|line| !line.is_empty()).count(), 4);
    }

    #[test]
    fn a_shell_reads_the_key_of_a_file_whatever_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("it's a \"key\" $(x)");
        std::fs::write(&file, "s3cret\n").unwrap();
        let text = text("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap(), &key_in(&file), "debian");
        assert!(!text.contains("s3cret"));
        let script =
            format!("{}; echo \"$TENSORLAKE_API_KEY $TENSORLAKE_SANDBOX_PROXY_URL\"", text.lines().next().unwrap());
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "s3cret http://127.0.0.1:2\n");
    }
}
