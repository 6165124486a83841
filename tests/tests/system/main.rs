//! The system from outside: the built binary, real file systems, real databases, real faults.

mod harness;
