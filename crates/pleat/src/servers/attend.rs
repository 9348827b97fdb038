//! What the nodes of a pair do for each other while their servers run.
//!
//! *The primary's node* looks at the standby, and says in the catalog how far it follows ([`Follows`]). With synchronous standbys it also makes the primary wait,
//! and lets it go on without the standby; the order of the two is what loses nothing:
//!
//! - *make it wait, see that it does, say `InStep`*. A setting is in force for commits when the server's checkpointer has read it. That is certain after a
//!   checkpoint that began when a new session has the setting already: that session was made by the server's first process, which tells the others
//!   before it makes sessions, and the checkpointer looks at its settings before each checkpoint. (The first of the two may have begun just
//!   before.) What was committed until then is on the standby when that has flushed the log to where it was afterwards.
//! - *say `Coming`, then let it go*. It is said even if the catalog has it: whatever was said before and is still on its way is then refused
//!   (see [`pleat_cluster::Pair::said`]).
//!
//! *The standby's node* looks whether the primary keeps the log for it. A standby that the primary has nothing for any more, or which does not come to follow, is
//! copied anew.

use std::time::Duration;

use pleat_cluster::{Command, Follows, Shard, Standbys};
use pleat_engine::postgres::PostgresError;
use pleat_provision::process::STANDBY;
use tokio::time::{Instant, sleep};

use super::{Keeper, TELL_LIMIT};

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a server may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// A checkpoint may take this long.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(120);
/// How long commits may wait for a standby that is only becoming one.
const TRIAL_LIMIT: Duration = Duration::from_secs(3);
/// A standby that is so far behind at most, in bytes of log, has caught up: the rest takes moments.
const NEAR_BYTES: u64 = 16 << 20;
/// A standby that runs and does not come to follow for so long is copied anew.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// What a primary says: how far its log is, what commits wait for, and of the standby that follows how far its log on the disk is, and
/// whether commits wait for it.
const LOOK: &str = "SELECT pg_current_wal_lsn(), current_setting('synchronous_standby_names'), s.flush_lsn, s.sync_state \
    FROM (SELECT) AS one LEFT JOIN pg_stat_replication AS s ON s.application_name = 'pleat_standby' AND s.state = 'streaming' \
    ORDER BY s.flush_lsn DESC NULLS LAST LIMIT 1";
const KEEPS_LOG: &str = "SELECT active, wal_status FROM pg_replication_slots WHERE slot_name = 'pleat_standby'";

struct Look {
    written: u64,
    waits: bool,
    /// Absent: nobody follows.
    flushed: Option<u64>,
    is_synchronous: bool,
}

/// `16/B374D848`, as a number of bytes.
fn position(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some((u64::from_str_radix(high, 16).ok()? << 32) + u64::from_str_radix(low, 16).ok()?)
}

impl Keeper {
    /// While this node's server is the primary of a pair. Ends never.
    pub(super) async fn attend_primary(&self) {
        // Up to where the log was when it was looked at, and when the standby was last seen to have all up to there.
        let (mut before, mut up_to_date) = (u64::MAX, Instant::now());
        let mut is_blind = false;
        loop {
            let catalog = self.host.catalog();
            if let Some(shard) = catalog.shards.get(&self.shard).filter(|shard| shard.standby().is_some()) {
                let look = match self.look().await {
                    Ok(look) => look,
                    Err(error) => {
                        if !std::mem::replace(&mut is_blind, true) {
                            tracing::warn!(shard = %self.shard, %error, "the primary does not say how its standby is; trying again");
                        }
                        sleep(LOOK_EVERY).await;
                        continue;
                    }
                };
                is_blind = false;
                if look.flushed.is_some_and(|flushed| flushed >= before || flushed >= look.written) {
                    up_to_date = Instant::now();
                }
                before = look.written;
                let attended = self.attend(shard, &look, up_to_date.elapsed(), catalog.policy.standbys).await;
                if let Err(why) = attended {
                    tracing::warn!(shard = %self.shard, why, "what the catalog says of the standby stays as it is; trying again");
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn attend(&self, shard: &Shard, look: &Look, stale: Duration, standbys: Standbys) -> Result<(), String> {
        let near = look.flushed.is_some_and(|flushed| flushed + NEAR_BYTES >= look.written);
        match shard.pair.follows {
            Follows::Coming if near && standbys == Standbys::Synchronous => {
                match self.make_wait().await {
                    Ok(()) => return self.say(shard, Follows::InStep).await,
                    Err(error) => {
                        tracing::warn!(shard = %self.shard, %error, "the primary does not wait for its standby yet")
                    }
                }
                self.let_go(shard).await
            }
            Follows::Coming if look.waits => self.let_go(shard).await,
            Follows::Coming if near => self.say(shard, Follows::Along).await,
            Follows::Coming => Ok(()),
            // Somebody else has changed the setting.
            Follows::InStep if !look.waits => self.say(shard, Follows::Coming).await,
            Follows::Along if look.flushed.is_some() => Ok(()),
            Follows::Along | Follows::InStep if stale < self.config.standby_wait => Ok(()),
            Follows::Along => self.say(shard, Follows::Coming).await,
            Follows::InStep => {
                let wait_s = self.config.standby_wait.as_secs();
                tracing::error!(shard = %self.shard, wait_s, "the standby does not follow; the primary goes on without it, and it can't be promoted");
                self.let_go(shard).await
            }
        }
    }

    async fn say(&self, shard: &Shard, follows: Follows) -> Result<(), String> {
        let (node, at) = (self.host.node(), self.host.now_ms());
        let (reign, said) = (shard.pair.reign, shard.pair.said);
        let note = Command::NoteStandby { shard: self.shard, node, reign, said, follows, at };
        self.host.command(note, TELL_LIMIT).await.map_err(|error| error.to_string())?;
        tracing::info!(shard = %self.shard, standby = follows.name(), "the catalog knows how far the standby follows");
        Ok(())
    }

    /// Have commits wait for the standby, and return when they surely do and it has all that was committed before.
    async fn make_wait(&self) -> Result<(), PostgresError> {
        self.ask("ALTER SYSTEM SET synchronous_standby_names = 'pleat_standby'", ASK_LIMIT).await?;
        self.ask("SELECT pg_reload_conf()", ASK_LIMIT).await?;
        let begun = Instant::now();
        while !self.look().await?.waits {
            self.within(begun, ASK_LIMIT, "has not read its settings")?;
        }
        for _ in 0..2 {
            self.ask("CHECKPOINT", CHECKPOINT_LIMIT).await?;
        }
        let (begun, written) = (Instant::now(), self.look().await?.written);
        loop {
            let look = self.look().await?;
            if look.is_synchronous && look.flushed.is_some_and(|flushed| flushed >= written) {
                return Ok(());
            }
            self.within(begun, TRIAL_LIMIT, "has a standby that does not keep up")?;
            sleep(LOOK_EVERY / 10).await;
        }
    }

    fn within(&self, begun: Instant, limit: Duration, why: &str) -> Result<(), PostgresError> {
        match begun.elapsed() < limit {
            true => Ok(()),
            false => Err(PostgresError::Unavailable(format!("the server {why} after {limit:?}"))),
        }
    }

    /// Have commits wait for nobody, when the catalog says that the standby is not to be promoted.
    async fn let_go(&self, shard: &Shard) -> Result<(), String> {
        self.say(shard, Follows::Coming).await?;
        for text in ["ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()"] {
            self.ask(text, ASK_LIMIT).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// While this node's server is a standby. Ends when it has to be copied anew.
    pub(super) async fn attend_standby(&self) {
        let mut lost: Option<Instant> = None;
        loop {
            let catalog = self.host.catalog();
            let is_coming = catalog.shards.get(&self.shard).is_some_and(|shard| shard.pair.follows == Follows::Coming);
            lost = match self.ask(KEEPS_LOG, ASK_LIMIT).await {
                Ok(_) if !is_coming => None,
                Ok(rows) => match rows.first().map(Vec::as_slice) {
                    Some([Some(active), Some(kept)]) if active == "t" && kept != "lost" => None,
                    _ => Some(lost.unwrap_or_else(Instant::now)),
                },
                // Nothing is known, and nothing could be copied.
                Err(_) => None,
            };
            if lost.is_some_and(|since| since.elapsed() > LOST_AFTER) {
                tracing::warn!(shard = %self.shard, "the standby does not come to follow; it is copied anew");
                return;
            }
            sleep(LOOK_EVERY * 2).await;
        }
    }

    /// Have the primary keep its log for a standby that is about to be copied.
    pub(super) async fn have_log_kept(&self) -> Result<(), String> {
        let lost = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{STANDBY}' AND wal_status = 'lost'"
        );
        let made = format!(
            "SELECT pg_create_physical_replication_slot('{STANDBY}', true) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{STANDBY}')"
        );
        for text in [lost, made] {
            self.ask(&text, ASK_LIMIT).await.map_err(|error| format!("have the primary keep its log: {error}"))?;
        }
        Ok(())
    }

    /// Ask the primary.
    async fn ask(&self, text: &str, within: Duration) -> Result<Vec<Vec<Option<String>>>, PostgresError> {
        self.host.ask_apart(self.shard, text, within).await.map(|asked| asked.rows)
    }

    async fn look(&self) -> Result<Look, PostgresError> {
        let row = self.ask(LOOK, ASK_LIMIT).await?.into_iter().next().unwrap_or_default();
        let text = |at: usize| row.get(at).and_then(Option::as_deref);
        let unread = || PostgresError::Unavailable("the server does not say how far its log is".to_owned());
        Ok(Look {
            written: text(0).and_then(position).ok_or_else(unread)?,
            waits: text(1) == Some(STANDBY),
            flushed: text(2).and_then(position),
            is_synchronous: text(3) == Some("sync"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_a_log_are_bytes() {
        assert_eq!(position("0/0"), Some(0));
        assert_eq!(position("16/B374D848"), Some((0x16 << 32) + 0xB374_D848));
        assert_eq!(position("x"), None);
    }
}
