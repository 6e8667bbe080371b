//! `dipc`: starts a mailbox server. The work is in the library of this package; here are only the
//! exit status and what is printed.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use dipc_server::args::{self, Ground, HELP, Request, Setup};
use dipc_server::daemon::{self, Side};
use dipc_server::failure::Failure;
use dipc_server::server::Server;
use dipc_server::sys;

fn main() -> ExitCode {
    match run() {
        Ok(status) => status,
        Err(failure) => {
            eprintln!("dipc: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, Failure> {
    match args::parse(std::env::args_os().skip(1))? {
        Request::Help => print(HELP)?,
        Request::Version => print(concat!("dipc ", env!("CARGO_PKG_VERSION"), "\n"))?,
        Request::Serve(setup) if setup.ground == Ground::Foreground => foreground(setup)?,
        Request::Serve(setup) => return background(setup),
    }
    Ok(ExitCode::SUCCESS)
}

fn foreground(setup: Setup) -> Result<(), Failure> {
    let server = Server::open(setup)?;
    let Setup { geometry, port, bind, .. } = setup;
    let kbytes = geometry.mailbox_bytes() / 1024;
    // Whoever started it may not read; that is no reason not to serve.
    let _ = print(&format!(
        "dipc: ready: {} mailboxes of {kbytes} kbytes on {bind} port {port}\n",
        geometry.mailboxes()
    ));
    server.run()
}

fn background(setup: Setup) -> Result<ExitCode, Failure> {
    sys::close_inherited().map_err(|error| Failure::system("inherited descriptors", error))?;
    let report = match daemon::split()? {
        Side::Parent(outcome) => return outcome.map(|()| ExitCode::SUCCESS),
        Side::Child(report) => report,
    };
    match daemon::detach().and_then(|()| Server::open(setup)) {
        Ok(server) => {
            report.ready();
            server.run()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            report.failed(&failure);
            Ok(ExitCode::FAILURE)
        }
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::system("standard output", error))
}
