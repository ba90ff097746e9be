//! Unusual images: of another machine, without a shell, without users, with settings that lead nowhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Answer, Host, repository, start_host};

fn tar(words: &[&str], archive: &Path) {
    let done = Command::new("tar").arg("--file").arg(archive).args(words).status().expect("run tar");
    assert!(done.success(), "tar {words:?}");
}

/// The archive of the small image, without the paths `left_out`.
fn small(directory: &TempDir, left_out: &[&str]) -> PathBuf {
    let archive = directory.path().join("small.tar");
    std::fs::copy(repository().join(".cache/host/busybox.tar"), &archive).expect("copy the archive");
    tar(&[&["--delete"], left_out].concat(), &archive);
    archive
}

/// An image that is removed at the end.
struct Image<'h> {
    host: &'h Host,
    name: String,
}

impl<'h> Image<'h> {
    fn import(host: &'h Host, name: &str, archive: &Path, options: &[&str]) -> Image<'h> {
        let name = format!("localhost/{name}:latest");
        host.podman().run(&[&["import", "--quiet"], options, &[archive.to_str().unwrap(), &name]].concat());
        Image { host, name }
    }

    fn start(&self) -> Answer {
        self.host.request("POST", "/sandboxes", Some(json!({ "image": self.name })))
    }
}

impl Drop for Image<'_> {
    fn drop(&mut self) {
        self.host.podman().run(&["rmi", "--force", &self.name]);
    }
}

fn nothing_is_left(host: &Host) {
    let tokens = std::fs::read_dir(host.state_dir().join("tokens")).expect("list the tokens").count();
    assert_eq!((host.containers(), tokens), (Vec::new(), 0));
}

#[test]
fn an_image_of_another_architecture_is_refused_with_both_names() {
    let Some(host) = start_host(&[]) else { return };
    let archive = repository().join(".cache/host/busybox.tar");
    let image = Image::import(&host, "tl-s390x", &archive, &["--arch", "s390x"]);
    let answer = image.start();
    let error = answer.body["error"].as_str().unwrap_or_default();
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert!((400..500).contains(&answer.status) && answer.body["code"].is_string(), "{answer:?}");
    assert!(error.contains("tl-s390x") && error.contains("architecture s390x") && error.contains(here), "{error}");
    nothing_is_left(&host);
}

#[test]
fn an_image_without_any_file_works() {
    let Some(host) = start_host(&[]) else { return };
    let directory = TempDir::new().unwrap();
    let archive = directory.path().join("empty.tar");
    tar(&["--create", "--files-from", "/dev/null"], &archive);
    let image = Image::import(&host, "tl-empty", &archive, &[]);
    let made = image.start();
    let id = made.body["sandbox_id"].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned();
    let none = host.ask("POST", &id, "/processes/run", r#"{"command": "sh"}"#);
    assert_eq!((none.status, &none.body["code"]), (400, &json!("COMMAND_NOT_FOUND")), "{none:?}");
    // The only program of the image is the one that is mounted.
    let run =
        host.ask("POST", &id, "/processes/run", r#"{"command": "/usr/lib/tl-init/tl-init", "args": ["--version"]}"#);
    assert!(run.body.as_str().is_some_and(|events| events.contains(r#""exit_code":0"#)), "{run:?}");
    assert_eq!(host.ask("PUT", &id, "/files?path=file", "text").status, 204);
    assert_eq!(host.ask("GET", &id, "/files?path=/home/tl-user/file", "").body, "text");
    // There is none to be the main process either.
    let body = json!({ "image": image.name, "entrypoint": ["/bin/none"] });
    let failed = host.request("POST", "/sandboxes", Some(body));
    let message = failed.body["error_details"]["message"].as_str().unwrap_or_default();
    assert!(failed.status == 422 && message.contains("/bin/none"), "{failed:?}");
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200);
    nothing_is_left(&host);
}

#[test]
fn an_image_without_users_gets_one() {
    let Some(host) = start_host(&[]) else { return };
    let directory = TempDir::new().unwrap();
    let archive = small(&directory, &["./etc"]);
    let image = Image::import(&host, "tl-no-users", &archive, &[]);
    let made = image.start();
    let id = made.body["sandbox_id"].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned();
    assert_eq!(host.shell(&id, "id -un; id -u; cd && pwd"), "tl-user\n1000\n/home/tl-user");
    let body = json!({ "command": "id", "args": ["-u"], "user": "0:0" }).to_string();
    let run = host.ask("POST", &id, "/processes/run", &body);
    assert!(run.body.as_str().is_some_and(|events| events.contains(r#""line":"0""#)), "{run:?}");
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200);
    nothing_is_left(&host);
}

#[test]
fn what_an_image_says_of_its_command_user_and_directory_is_not_used() {
    let Some(host) = start_host(&[]) else { return };
    let archive = repository().join(".cache/host/busybox.tar");
    let settings =
        ["ENTRYPOINT [\"/no/program\"]", "CMD [\"--no-option\"]", "USER nobody-at-all", "WORKDIR /no/directory"];
    let options: Vec<&str> = settings.iter().flat_map(|setting| ["--change", setting]).collect();
    let image = Image::import(&host, "tl-lost", &archive, &options);
    let made = image.start();
    let id = made.body["sandbox_id"].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned();
    assert_eq!(host.shell(&id, "id -un"), "tl-user");
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{id}"), None).status, 200);
    nothing_is_left(&host);
}
