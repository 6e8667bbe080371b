//! TCP sockets as links and wires want them: no delay, bound to this machine's address, and given
//! up by the kernel when the other machine says nothing for the node time-out.
#![forbid(unsafe_code)]

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::config::Liveness;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens for links and wires. A port in use is an error that names the address.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address)?;
    let listening = socket
        .set_reuse_address(true)
        .and_then(|()| socket.bind(&address.into()))
        .and_then(|()| socket.listen(BACKLOG));
    listening.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
    Ok(socket.into())
}

/// Connects to another node, from this machine's address: it is what allow lists name.
pub fn dial(
    own: IpAddr,
    to: SocketAddr,
    liveness: &Liveness,
    wait: Duration,
) -> io::Result<TcpStream> {
    let socket = new_socket(to)?;
    if own.is_ipv4() == to.is_ipv4() && !own.is_unspecified() {
        socket.bind(&SocketAddr::new(own, 0).into())?;
    }
    socket.connect_timeout(&to.into(), wait)?;
    tune(&socket, liveness)?;
    Ok(socket.into())
}

/// The same for a connection that was accepted.
pub fn accepted(stream: &TcpStream, liveness: &Liveness) -> io::Result<()> {
    tune(&socket2::SockRef::from(stream), liveness)
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
}

fn tune(socket: &Socket, liveness: &Liveness) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(liveness.node_timeout))?;
    let second = Duration::from_secs(1);
    let probes = u32::try_from(liveness.node_timeout.as_secs()).unwrap_or(u32::MAX).clamp(1, 100);
    let keepalive =
        TcpKeepalive::new().with_time(second).with_interval(second).with_retries(probes);
    socket.set_tcp_keepalive(&keepalive)
}
