//! Databases that do not know they are watched: any point of theirs is a database that recovers, with all it had promised.
//!
//! One file a database, one story for all: points are promoted, in no order, and started. `TIDELOCK_POINTS=whole` takes as many points as it needs to be believed,
//! `TIDELOCK_POINTS=N` takes N. With `TIDELOCK_KEEP=DIR` a bad point is restored once more beneath DIR, as evidence.

mod etcd;
mod lmdb;
mod mariadb;
mod redis;
mod sqlite;

use std::{fs, path::Path, time::Duration};

use rand::{SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tidelock_tests::{
    acks::Ack,
    ledger::{Load, Writer},
    mount::{Format, Mount},
    needs::{self, Need},
    site::{Receiver, Site, Tracker},
    wait::{self, SOON},
};

/// Connections that write at once.
const WRITERS: usize = 3;
/// How long they write.
const LENGTH: Duration = Duration::from_secs(5);
/// Points of a database when nothing else is asked for.
const FEW: usize = 4;
/// Seeding, checkpoints and a busy machine.
const SETTLE: Duration = Duration::from_secs(120);

/// Exit code of a sidecar whose epoch is over.
pub(crate) const FENCED: i32 = 3;

/// A running database on a protected directory.
trait Database {
    /// A connection for the writer of this number.
    fn writer(&self, number: usize) -> Box<dyn Writer>;

    /// Starts a promoted copy, lets it recover, and has its own tools and the application's rules check it; returns the
    /// counters of all writers. The copy is changed by this.
    fn check(&self, copy: &Path, run: &Path) -> Result<Vec<u64>, String>;
}

/// What is protected where, and how much of it is looked at.
struct Story {
    format: Format,
    /// Programs that must be there.
    programs: &'static [&'static str],
    /// Points to check when all is asked for.
    whole: usize,
    /// How long after its acknowledgement the database promises a commit to outlive a crash of the machine.
    slack: Duration,
}

impl Story {
    /// Protects the database that `start` makes in the given data and run directories, and checks points at random.
    fn tell<D: Database>(&self, start: impl FnOnce(&Path, &Path) -> D) {
        let mkfs = if self.format == Format::Ext4 { "mkfs.ext4" } else { "mkfs.xfs" };
        let programs = self.programs.iter().chain([&mkfs]).map(|program| Need::Program(program));
        let needs: Vec<Need> = [Need::Root, Need::Tracepoints].into_iter().chain(programs).collect();
        if !needs::met(&needs) {
            return;
        }
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), self.format, 2048);
        let data = mount.path().join("data");
        fs::create_dir(&data).expect("new");
        let database = start(&data, &site.new_dir("run"));
        let mut receiver = site.receiver();
        let mut sidecar = site.sidecar(&receiver, &data).tracker(Tracker::Exact).start();

        let load = Load::start((0..WRITERS).map(|number| database.writer(number)).collect());
        let first = sidecar.covered(load.under_way(), SETTLE);
        // Where cuts seldom find a quiet instant, the load lasts longer, rather than few points being looked at.
        wait::until_true("enough points under load", SETTLE, || {
            sidecar.acks().iter().filter(|ack| ack.id >= first.id).count() >= self.points()
        });
        let ledger = load.finish(LENGTH);
        sidecar.caught_up(SETTLE);
        let points: Vec<Ack> = sidecar.acks().into_iter().filter(|ack| ack.id >= first.id).collect();
        let mut rng = StdRng::seed_from_u64(wait::now_ns());
        let chosen: Vec<&Ack> = points.choose_multiple(&mut rng, self.points()).collect();
        println!("{} commits, {} points, {} looked at", ledger.len(), points.len(), chosen.len());
        assert_eq!(chosen.len(), self.points(), "too few points");

        // From here on this is a failover: the primary runs on, and knows no better until it is fenced.
        sidecar.process.allow("fenced");
        let mut bad = Vec::new();
        for Ack { id, cut_ns, .. } in &chosen {
            let at = id.to_string();
            let copy = site.path("copy");
            site.promote(&mut receiver, &at, &copy);
            let held = database.check(&copy, &site.new_dir("copy-run"));
            let wrong = held.map_or_else(|why| vec![why], |held| ledger.judge(&held, *cut_ns, self.slack));
            if !wrong.is_empty() {
                keep(&site, &receiver, &at);
                bad.push(format!("{id}: {}", wrong.join("; ")));
            }
            fs::remove_dir_all(&copy).expect("the copy is ours");
        }
        assert_eq!(sidecar.process.wait(SOON).code(), Some(FENCED));
        assert!(bad.is_empty(), "{} of {} points are bad:\n{}", bad.len(), chosen.len(), bad.join("\n"));
    }

    fn points(&self) -> usize {
        points(FEW, self.whole)
    }
}

/// How many points to look at: a few, or the whole number, or what is asked for.
pub(crate) fn points(few: usize, whole: usize) -> usize {
    match std::env::var("TIDELOCK_POINTS").as_deref() {
        Err(_) => few,
        Ok("whole") => whole,
        Ok(number) => number.parse().expect("TIDELOCK_POINTS is `whole` or a number"),
    }
}

fn keep(site: &Site, receiver: &Receiver, at: &str) {
    if let Some(dir) = std::env::var_os("TIDELOCK_KEEP") {
        let to = Path::new(&dir).join(format!("{}-{at}", std::process::id()));
        site.restore(receiver, at, &to);
        println!("{at} is kept in {}", to.display());
    }
}
