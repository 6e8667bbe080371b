//! Whom a frame of another node is for: who has asked, who works on what takes a moment, the
//! referee, or the daemon itself. And whether only a referee may say it.
#![forbid(unsafe_code)]

use dipc_wire::ids::Req;
use dipc_wire::peer::PeerFrame;

/// For whom a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressee {
    /// Whoever has asked this question.
    Asker(Req),
    /// The worker of its link: it may take a moment.
    Worker,
    /// The referee, if it is here.
    Referee,
    /// The daemon, at once.
    Daemon,
}

/// For whom a frame is.
pub fn of(frame: &PeerFrame) -> Addressee {
    match *frame {
        PeerFrame::Claimed { req, .. }
        | PeerFrame::Resolved { req, .. }
        | PeerFrame::Listed { req, .. }
        | PeerFrame::Asked { req, .. }
        | PeerFrame::Placed { req, .. }
        | PeerFrame::Ticketed { req, .. }
        | PeerFrame::Attached { req, .. }
        | PeerFrame::Controlled { req, .. }
        | PeerFrame::Counted { req, .. }
        | PeerFrame::StatusIs { req, .. }
        | PeerFrame::Surveyed { req, .. }
        | PeerFrame::SemaphoresAre { req, .. }
        | PeerFrame::RemovedFor { req, .. }
        | PeerFrame::AttachmentsAre { req, .. }
        | PeerFrame::DetachNoted { req }
        | PeerFrame::Succession { req, .. } => Addressee::Asker(req),
        PeerFrame::ReportPlease
        | PeerFrame::Void
        | PeerFrame::Ask { .. }
        | PeerFrame::AskByNonce { .. }
        | PeerFrame::Place { .. }
        | PeerFrame::Unplace { .. }
        | PeerFrame::Ticket { .. }
        | PeerFrame::Ended { .. }
        | PeerFrame::Census { .. }
        | PeerFrame::Attach { .. }
        | PeerFrame::Detach { .. }
        | PeerFrame::Control { .. }
        | PeerFrame::Count { .. }
        | PeerFrame::ToHome { .. }
        | PeerFrame::ToReplica { .. }
        | PeerFrame::Status { .. }
        | PeerFrame::Survey { .. }
        | PeerFrame::Semaphores { .. }
        | PeerFrame::RemoveFor { .. }
        | PeerFrame::Attachments { .. }
        | PeerFrame::Record(_)
        | PeerFrame::Succeed { .. } => Addressee::Worker,
        PeerFrame::Report { .. }
        | PeerFrame::Voided
        | PeerFrame::Claim { .. }
        | PeerFrame::ClaimFor { .. }
        | PeerFrame::Made { .. }
        | PeerFrame::Abandon { .. }
        | PeerFrame::Removed { .. }
        | PeerFrame::Unnamed { .. }
        | PeerFrame::Resolve { .. }
        | PeerFrame::List { .. } => Addressee::Referee,
        PeerFrame::Heartbeat { .. }
        | PeerFrame::HeartbeatEcho { .. }
        | PeerFrame::Admitted { .. }
        | PeerFrame::Members(_)
        | PeerFrame::Confirmed { .. }
        | PeerFrame::Denied { .. }
        | PeerFrame::Buried { .. }
        // An answer that comes after it must not overtake it.
        | PeerFrame::Detached { .. } => Addressee::Daemon,
    }
}

/// Whether only a referee says this, unasked.
pub fn is_of_referee(frame: &PeerFrame) -> bool {
    matches!(
        frame,
        PeerFrame::Admitted { .. }
            | PeerFrame::Members(_)
            | PeerFrame::Record(_)
            | PeerFrame::ReportPlease
            | PeerFrame::Void
            | PeerFrame::Confirmed { .. }
            | PeerFrame::Denied { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_wire::ids::ObjectId;

    #[test]
    fn orders_are_the_referees_and_answers_are_anybodys() {
        assert!(is_of_referee(&PeerFrame::Void));
        assert!(is_of_referee(&PeerFrame::Members(Vec::new())));
        assert!(is_of_referee(&PeerFrame::Denied { id: ObjectId::from_number(1) }));
        assert!(!is_of_referee(&PeerFrame::Heartbeat { sent_ms: 1 }));
        assert!(!is_of_referee(&PeerFrame::Voided));
    }
}
