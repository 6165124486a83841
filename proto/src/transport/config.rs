//! How QUIC is tuned: for a small frame and its acknowledgement first, for bulk second, for bounded memory always.
//!
//! The figures are those of `examples/link.rs` on loopback, two busy cores. Cubic stays the congestion controller: it
//! is fair to what else uses the line. QUIC's ack frequency extension stays off: asking for an acknowledgement every
//! ten packets instead of every two gave 590 MiB/s instead of 750, and the same round trips.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig,
    VarInt,
};

use crate::limits;

/// The largest datagram that is tried; smaller paths are found by probing. A page fits, and so do the ten datagrams that
/// quinn hands to the kernel at once: were they more than 64 KiB, the kernel would refuse them all, and the losses would
/// bring the path down to 1200 bytes (measured with 8952: 80 MiB/s instead of 600).
const MTU_MAX: u16 = 6_500;
/// The first guess of a round trip. The standard's 333 ms would delay the first repeat of a lost packet too long.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Kernel buffers of the socket, a burst of a fast link; the kernel may give less.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// The settings of one side. A client may open streams, a server only the one that greets.
pub(super) fn transport(side: quinn::Side) -> Arc<TransportConfig> {
    let (bidirectional, unidirectional) = match side {
        quinn::Side::Server => (limits::STREAMS_MAX, 0),
        quinn::Side::Client => (0, 1),
    };
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let idle = IdleTimeout::try_from(limits::IDLE_TIMEOUT).expect("the idle timeout is a few seconds");

    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(bidirectional.into())
        .max_concurrent_uni_streams(VarInt::from_u32(unidirectional))
        .stream_receive_window(limits::STREAM_RECEIVE_WINDOW_BYTES.into())
        .receive_window(limits::RECEIVE_WINDOW_BYTES.into())
        .send_window(limits::SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(limits::KEEPALIVE_INTERVAL))
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(mtu))
        .datagram_receive_buffer_size(None);
    Arc::new(config)
}

/// A socket with an endpoint on it. `server` is what a server begins handshakes with.
pub(super) fn endpoint(
    address: SocketAddr,
    mut config: EndpointConfig,
    server: Option<ServerConfig>,
) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(address)?;
    // Best effort: smaller buffers cost throughput, not correctness.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    config.max_udp_payload_size(MTU_MAX).expect("this is a valid datagram size");
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
}
