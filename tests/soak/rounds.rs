//! Rounds: all clients and the faults at once, then a pause in which everything is checked.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

use crate::checker::{Checker, Running};
use crate::client::{Client, Shared};
use crate::faults;
use crate::operations::files;
use crate::options::Options;
use crate::report;

/// What a client is told.
enum Order {
    Round(u64),
    /// End everything.
    Finish,
}

/// What a client, or another thread, has to say.
enum News {
    /// It pauses; what runs.
    Paused(Vec<Running>),
    Finished,
    Violation(String),
}

/// A deadline for a round, far beyond what one takes.
const ROUND: Duration = Duration::from_secs(600);

thread_local! {
    /// The message and the place of the last panic of this thread.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `job`; the error is the message of its panic.
fn guarded<T>(job: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(job)).map_err(|_: Box<dyn Any + Send>| PANIC.take())
}

/// The whole soak. Returns whether nothing was wrong.
pub fn run(shared: &Shared, options: &Options) -> bool {
    std::panic::set_hook(Box::new(|panic| PANIC.set(panic.to_string())));
    let begun = Instant::now();
    let mut soak = Soak {
        checker: Checker::new(shared),
        violations: Vec::new(),
        rounds: 0,
        round: options.round,
        full_disk: options.full_disk != 0,
        hangs: false,
    };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (news, received) = channel();
        let prober = (news.clone(), &is_over);
        scope.spawn(move || {
            let result = guarded(|| faults::probe(shared, prober.1));
            let _ = result.map_err(|what| prober.0.send(News::Violation(format!("VIOLATION: the prober: {what}\n"))));
        });
        let clients: Vec<Sender<Order>> =
            (0..options.clients).map(|number| spawn(scope, shared, number, options, &news)).collect();
        let end = begun + Duration::from_secs(options.seconds);
        while soak.violations.is_empty() && (Instant::now() < end || soak.rounds == 0) {
            soak.run_round(scope, shared, &clients, &received, &news);
        }
        if soak.hangs {
            // Its thread cannot be joined.
            soak.report(shared, options, begun);
            std::process::exit(1);
        }
        is_over.store(true, Ordering::SeqCst);
        drop(clients);
        // Others may have found something too, by the same fault.
        while let Ok(news) =
            received.recv_timeout(Duration::from_millis(if soak.violations.is_empty() { 0 } else { 2_000 }))
        {
            soak.note(news);
        }
    });
    soak.report(shared, options, begun)
}

struct Soak {
    checker: Checker,
    violations: Vec<String>,
    /// Number of rounds that are complete.
    rounds: u64,
    /// Number of the current round.
    round: u64,
    /// Whether the log disk fills up.
    full_disk: bool,
    /// Whether a client does not answer any more.
    hangs: bool,
}

impl Soak {
    /// Prints what was found. Returns whether nothing was wrong.
    fn report(&self, shared: &Shared, options: &Options, begun: Instant) -> bool {
        for violation in &self.violations {
            println!("{violation}");
        }
        if !self.violations.is_empty() {
            println!("{}", report::how_to_repeat(shared, self.round, options.operations));
            let kept = std::env::temp_dir().join(format!("soak-{}.log", shared.seed));
            let copied = std::fs::copy(shared.daemon.log_file(), &kept);
            println!("the log of the daemon is {kept:?}: {copied:?} bytes");
        }
        println!(
            "{}",
            report::summary(shared, begun.elapsed(), self.rounds, &self.checker.memories, self.violations.len())
        );
        self.violations.is_empty()
    }

    /// Notes a violation; returns what runs if a client pauses.
    fn note(&mut self, news: News) -> Option<Vec<Running>> {
        match news {
            News::Paused(running) => return Some(running),
            News::Finished => return Some(Vec::new()),
            News::Violation(text) => self.violations.push(text),
        }
        None
    }

    /// Waits until all clients have answered; none if there is a violation.
    fn wait_for_all(&mut self, count: usize, received: &Receiver<News>) -> Option<Vec<Running>> {
        let mut running = Vec::new();
        for _ in 0..count {
            match received.recv_timeout(ROUND) {
                Ok(news) => running.extend(self.note(news)?),
                Err(_) => {
                    self.violations.push("VIOLATION: a client hangs".to_owned());
                    self.hangs = true;
                    return None;
                }
            }
        }
        Some(running)
    }

    fn check(&mut self, what: &str, check: impl FnOnce(&mut Checker)) -> bool {
        let result = guarded(|| check(&mut self.checker));
        if let Err(error) = &result {
            self.violations.push(format!("VIOLATION: {what}, after round {}: {error}\n", self.round));
        }
        result.is_ok()
    }

    fn run_round<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared,
        clients: &[Sender<Order>],
        received: &Receiver<News>,
        news: &Sender<News>,
    ) {
        let is_over = std::sync::Arc::new(AtomicBool::new(false));
        let injector = scope.spawn({
            let (is_over, news, round, full_disk) = (is_over.clone(), news.clone(), self.round, self.full_disk);
            move || {
                let result = guarded(|| faults::inject(shared, round, full_disk, &is_over));
                let _ = result.map_err(|what| news.send(News::Violation(format!("VIOLATION: the faults: {what}\n"))));
            }
        });
        clients.iter().for_each(|client| drop(client.send(Order::Round(self.round))));
        let running = self.wait_for_all(clients.len(), received);
        is_over.store(true, Ordering::SeqCst);
        let _ = injector.join();
        let Some(running) = running else { return };
        if !self.check("while processes run", |checker| checker.check_running(shared, &running)) {
            return;
        }
        clients.iter().for_each(|client| drop(client.send(Order::Finish)));
        if self.wait_for_all(clients.len(), received).is_none() {
            return;
        }
        if self.check("when everything has ended", |checker| checker.check_ended(shared)) {
            self.rounds += 1;
            self.round += 1;
        }
    }
}

/// Starts the thread of a client.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    shared: &'scope Shared,
    number: u64,
    options: &Options,
    news: &Sender<News>,
) -> Sender<Order> {
    let (orders, received) = channel();
    let (operations, news) = (options.operations, news.clone());
    scope.spawn(move || {
        let mut client = Client::new(shared, number);
        files::make_directories(&client);
        for order in received {
            match guarded(|| obey(&mut client, &order, operations)) {
                Ok(answer) => drop(news.send(answer)),
                Err(what) => {
                    let _ = news.send(News::Violation(report::violation(&client, &what)));
                    break;
                }
            }
        }
        // Sessions and streams of a client that has failed must not be dropped before the report.
        std::mem::forget(client);
    });
    orders
}

fn obey(client: &mut Client, order: &Order, operations: u64) -> News {
    match order {
        Order::Round(round) => {
            client.begin_round(*round);
            (1..=operations).for_each(|number| client.operate(number));
            client.finish_what_ends();
            News::Paused(client.running())
        }
        Order::Finish => {
            client.finish_all();
            News::Finished
        }
    }
}
