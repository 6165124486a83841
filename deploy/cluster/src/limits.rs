//! Every limit of what is done with an API.

use std::time::Duration;

/// The longest request for an identity, in bytes.
pub const REQUEST_MAX_BYTES: usize = 16 << 10;
/// The longest token of a service account, in bytes.
pub const TOKEN_MAX_BYTES: usize = 8 << 10;
/// The longest answer of the issuer, in bytes.
pub const ANSWER_MAX_BYTES: usize = 256 << 10;
/// Requests for identities that are judged at one time; each asks the API twice.
pub const REQUESTS_AT_ONCE: usize = 16;
/// How long a request for an identity may wait for its turn, and be judged.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an attempt to get an identity may take.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// The first pause after an attempt that failed, and the longest.
pub const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long work that ends tries to get an identity, before whoever started it is told why there is none.
pub const OBTAIN: Duration = Duration::from_secs(30);
/// Reading a Secret that somebody else is about to create.
pub const CREATE_ATTEMPTS: usize = 5;
/// How often the injector compares its certificates and the webhook's bundle with the Secret.
pub const AUTHORITY_LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long the certificate of the webhook is valid; it is renewed after two thirds of that.
pub const WEBHOOK_VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the identity of a pod is valid; it is renewed after two thirds of that.
pub const IDENTITY_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// How often a workload is looked at until it is ready.
pub const READY_LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a Job's pod is tried again.
pub const JOB_RETRIES: u32 = 3;
/// For how long a Job that has ended is kept, so that its log can be read.
pub const JOB_KEPT_FOR: Duration = Duration::from_secs(3600);
/// The longest name of a Job: that of its pods has a few letters more, and both are values of labels.
pub const JOB_NAME_MAX_BYTES: usize = 57;
/// How long the removal of a namespace may take.
pub const NAMESPACE_REMOVAL: Duration = Duration::from_secs(300);
/// A record that does not change is written at least so often.
pub const RECORD_AT_LEAST_EVERY: Duration = Duration::from_secs(3600);
/// Pods in one answer of the API.
pub const LIST_PAGE: u32 = 500;
/// An authority that ends sooner gets a successor, or is told of if somebody else sees to that.
pub const AUTHORITY_ENDS_SOON: Duration = Duration::from_secs(180 * 24 * 3600);
/// So long a successor is believed before it signs. Identities here are renewed much sooner; people elsewhere have to hear of it.
pub const AUTHORITY_OVERLAP: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a replica that looks after pods may be silent before another one takes its place.
pub const LEASE: Duration = Duration::from_secs(15);
/// How long it goes on with its work after it could last renew that: less, so that two never work at one time.
pub const LEASE_WORK: Duration = Duration::from_secs(10);
/// How often replicas look at the lease, and the holder renews it.
pub const LEASE_LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long giving the lease back may take at the end.
pub const LEASE_LEAVE: Duration = Duration::from_secs(2);
/// How often pods are counted and told of, if anything changed.
pub const REPORT_EVERY: Duration = Duration::from_secs(1);
/// A pod is told of that has not been protected for so long: what ends by itself is nobody's work.
pub const REPORT_AFTER: Duration = Duration::from_secs(10);
/// What does not end is told of again so often. An API server keeps Events for an hour.
pub const REPORT_AGAIN: Duration = Duration::from_secs(50 * 60);
/// Events that are sent at once when there are many.
pub const EVENTS_BURST: u32 = 20;
/// After those one in this time.
pub const EVENT_EVERY: Duration = Duration::from_secs(5);
/// The longest text of an Event, in bytes; the API takes 1024.
pub const EVENT_NOTE_MAX_BYTES: usize = 1000;
/// The longest part of an object's name in that of its Event, in bytes; the API takes 253 for all of it.
pub const EVENT_NAME_MAX_BYTES: usize = 200;
/// How long the identity is valid that a probe dials with, which nobody believes.
pub const STRANGER_VALIDITY: Duration = Duration::from_secs(3600);
