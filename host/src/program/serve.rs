//! Serves until a signal: the order of start and stop.
//!
//! The API and the proxy are bound last, when all sandboxes are known. At the end they are shut down first; sandboxes go
//! on without tl-host, and the next start finds them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use tl_os::resource_limits;
use tl_os::signal_thread::SignalThread;
use tl_supervisor::http::Auth;
use tl_supervisor::http::server::{Handler, Options, Server};
use tl_supervisor::metrics::{Kind, Page};

use crate::api::{Api, Turns};
use crate::program::config::Config;
use crate::program::outcome::{Failure, print};
use crate::program::{address, doctor, key, setup, welcome};
use crate::proxy::{Numbers, Proxy};
use crate::sandbox::{MAX_SANDBOXES, Sandboxes};

/// Connections of the API.
const API_CONNECTIONS: usize = 512;

/// Connections of the proxy: each WebSocket and each stream holds one.
const PROXY_CONNECTIONS: usize = 4096;

/// Why the program ends.
enum Stop {
    Signal(i32),
    /// `POST /stop` has ended all sandboxes.
    Request,
}

pub(crate) fn serve(config: Config) -> Result<(), Failure> {
    // Only the signal thread receives signals.
    let _ = SigSet::all().thread_block();
    let (sender, stops) = channel();
    let _signals = watch_signals(sender.clone())?;
    raise_limits();
    let state_dir = setup::state_dir(&config)?;
    let settings = setup::settings(&config, state_dir.clone(), setup::init(&config)?);
    let given_key = config.key_file.as_deref().map(key::read).transpose();
    let given_key = given_key.map_err(|error| Failure::Failed(format!("--key-file: {error}")))?;
    check_ports(&config)?;
    // A tl-host that cannot start leaves no state directory: it is made here, once the engine has answered.
    let sandboxes = Sandboxes::open(setup::engine(&config), settings).map_err(|error| setup::not_opened(&error))?;
    let key = given_key.map_or_else(|| key::read_or_make(&state_dir), Ok).map_err(Failure::Failed)?;
    doctor::remove_left(&setup::engine(&config));
    let proxy = Proxy::start(Arc::<Sandboxes>::clone(&sandboxes), key.clone().into_bytes(), config.idle)
        .map_err(|error| Failure::Failed(format!("--proxy: {error}")))?;
    let numbers = proxy.numbers();
    let proxy = bind("--proxy", config.proxy, proxy, PROXY_CONNECTIONS, config.idle)?;
    let api = Api {
        sandboxes: Arc::clone(&sandboxes),
        auth: Auth::Token(key.clone().into_bytes()),
        default_image: config.default_image.clone(),
        proxy: proxy.local_addr(),
        proxy_metrics: Box::new(move |page| write_proxy_metrics(page, &numbers)),
        log_turns: Turns::new(),
        stopped: Box::new(move || drop(sender.send(Stop::Request))),
    };
    let api = bind("--api", config.api, api, API_CONNECTIONS, config.idle)?;
    let announced = address::announce(&state_dir, api.local_addr());
    let announced = announced.map_err(|error| Failure::Failed(format!("--state-dir: {error}")))?;
    let (api_address, proxy_address) = (api.local_addr(), proxy.local_addr());
    log::info!(
        event = "host.listening", api:% = api_address, proxy:% = proxy_address;
        "{}: the API listens on {api_address}, the proxy on {proxy_address}", sandboxes.engine_info().name
    );
    let key = config.key_file.as_deref().map_or(key, welcome::key_in);
    let _ = print(&welcome::text(api_address, proxy_address, &key, &config.default_image));
    match stops.recv() {
        Ok(Stop::Signal(signal)) => log::info!("signal {signal}: ending; the sandboxes go on"),
        Ok(Stop::Request) => log::info!("POST /stop: all sandboxes are ended; ending"),
        // Does not happen: the signal thread has a sender.
        Err(_) => {}
    }
    // While the file is locked, the API listens.
    drop(announced);
    thread::scope(|scope| {
        // Each may take some seconds. Without another thread, one follows the other.
        let _ = thread::Builder::new().spawn_scoped(scope, || api.shutdown());
        proxy.shutdown();
    });
    api.shutdown();
    Ok(())
}

fn watch_signals(sender: Sender<Stop>) -> Result<SignalThread, Failure> {
    let signals = [Signal::SIGTERM as i32, Signal::SIGINT as i32];
    let notice = move |received: tl_os::signal_thread::Received| drop(sender.send(Stop::Signal(received.signal)));
    SignalThread::start("signals", &signals, notice).map_err(|error| Failure::Failed(format!("signals: {error}")))
}

/// Each connection has a descriptor, and in the proxy two; each sandbox has one too.
fn raise_limits() {
    let enough = (2 * PROXY_CONNECTIONS + API_CONNECTIONS + MAX_SANDBOXES + 256) as u64;
    let raised = resource_limits::raise_hard_nofile(enough).and_then(|_| resource_limits::raise());
    match raised {
        Ok((_, limit)) if limit < enough => {
            log::warn!("only {limit} descriptors are allowed: fewer connections than usual are served");
        }
        Ok(_) => {}
        Err(error) => log::warn!("the limit of descriptors cannot be raised: {error}"),
    }
}

/// Checks that both addresses are free. They are bound once the sandboxes are known.
fn check_ports(config: &Config) -> Result<(), Failure> {
    let bind =
        |option: &str, address| TcpListener::bind(address).map_err(|error| cannot_listen(option, address, &error));
    let _proxy = bind("--proxy", config.proxy)?;
    bind("--api", config.api).map(drop)
}

fn cannot_listen(option: &str, address: SocketAddr, error: &io::Error) -> Failure {
    Failure::Failed(format!("{option}: cannot listen on {address}: {error}"))
}

fn bind(
    option: &str,
    address: SocketAddr,
    handler: impl Handler,
    connections: usize,
    idle: Duration,
) -> Result<Server, Failure> {
    let options = Options::new().max_connections(connections).server_name("tl-host").idle_timeout(idle);
    Server::bind(address, handler, options).map_err(|error| cannot_listen(option, address, &error))
}

fn write_proxy_metrics(page: &mut Page, numbers: &Numbers) {
    let numbers = numbers.read();
    for (name, kind, help, value) in [
        ("tl_host_proxy_requests", Kind::Counter, "Requests to the proxy.", numbers.requests),
        (
            "tl_host_proxy_failures",
            Kind::Counter,
            "Requests that the proxy has answered with an error.",
            numbers.failed,
        ),
        ("tl_host_proxy_requests_open", Kind::Gauge, "Requests that are being served.", numbers.open),
        ("tl_host_proxy_upgrades_open", Kind::Gauge, "WebSockets that are open.", numbers.open_upgraded),
    ] {
        page.named(name, kind, help);
        page.sample(&[], value);
    }
    page.named("tl_host_proxy_bytes", Kind::Counter, "Bytes of bodies and WebSockets that have passed the proxy.");
    page.sample(&[("direction", "to_sandbox")], numbers.received_bytes);
    page.sample(&[("direction", "to_client")], numbers.sent_bytes);
}
