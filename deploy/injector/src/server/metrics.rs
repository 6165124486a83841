//! What the injector counts.

use std::{sync::Mutex, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::review::Answer;

pub(super) struct Metrics {
    registry: Mutex<Registry>,
    reviews: Family<Outcome, Counter>,
    notes: Family<OfReason, Counter>,
    seconds: Histogram,
    refused: Family<Why, Counter>,
    handshakes_failed: Counter,
    connections: Gauge,
    not_after: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    why: &'static str,
}

/// Counts a connection for as long as it lives.
pub(super) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(super) fn new(registry: Registry) -> Self {
        let metrics = Self {
            registry: Mutex::new(registry),
            reviews: Family::default(),
            notes: Family::default(),
            seconds: Histogram::new([
                0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 1.0, 5.0,
            ]),
            refused: Family::default(),
            handshakes_failed: Counter::default(),
            connections: Gauge::default(),
            not_after: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        registry.register("reviews", "Reviews answered, by outcome", self.reviews.clone());
        registry.register(
            "notes",
            "Why pods were left alone, or not protected as they asked for",
            self.notes.clone(),
        );
        let help = "From the head of a review to its answer, its body's way included";
        registry.register_with_unit("review", help, Unit::Seconds, self.seconds.clone());
        registry.register("refused", "Requests that were not answered", self.refused.clone());
        registry.register("handshakes_failed", "TLS handshakes that failed", self.handshakes_failed.clone());
        registry.register("connections", "Open connections", self.connections.clone());
        let help = "When the certificate in use ends";
        registry.register_with_unit(
            "certificate_not_after_timestamp",
            help,
            Unit::Seconds,
            self.not_after.clone(),
        );
    }

    pub(super) fn connection(&self) -> Open {
        self.connections.inc();
        Open(self.connections.clone())
    }

    pub(super) fn on_handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    pub(super) fn on_answer(&self, answer: &Answer, took: Duration) {
        let outcome = if answer.injected { "injected" } else { "left" };
        self.reviews.get_or_create(&Outcome { outcome }).inc();
        for note in &answer.notes {
            self.notes.get_or_create(&OfReason { reason: note.reason.code() }).inc();
        }
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn on_refused(&self, why: &'static str) {
        self.refused.get_or_create(&Why { why }).inc();
    }

    pub(super) fn encode(&self, not_after_s: i64) -> String {
        self.not_after.set(not_after_s);
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        encode(&mut text, &registry).expect("a String takes every text");
        text
    }
}
