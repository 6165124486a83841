//! Who a peer is: the SPIFFE ids in its certificate, which alone decide what it may touch.
//!
//! The certificate authority is the root of all trust: whoever it gives a volume's id may write that volume. The trust
//! domain is checked for shape only, so that clusters with different domains can share one authority; the price is that
//! `tenant/a` means the same tenant in every domain of that authority.

mod files;
mod peer;
mod spiffe;

pub(crate) use files::Credentials;
pub use files::{CA_FILE, CERTIFICATE_FILE, Identity, IdentityFileError, KEY_FILE};
pub use peer::{IdentityError, Peer, Role};
pub use spiffe::{SpiffeId, SpiffeIdError, Subject, TrustDomain};
