"""What may continue a sequence: the draft's proposals, or what followed when its end occurred before."""

from cachetools import LRUCache

from services.verifier.load import Way
from services.verifier.suffix_index import NO_MATCH, History, Match
from services.verifier.target_sequence import NO_OFFER, Offer, Origin, TargetSequence

_CATCH_UP_TOKENS = 2048
_HISTORY_TOKENS = 16_384
_MAX_HISTORIES = 64


class Offers:
    """Looks at every source. Texts are remembered by the root of their block keys: by tenant, model and adapter."""

    def __init__(self, *, suffix_drafting: bool) -> None:
        self._suffix_drafting = suffix_drafting
        self._histories: LRUCache[bytes, History] = LRUCache(_MAX_HISTORIES)

    def best(self, target: TargetSequence, way: Way) -> Offer:
        """The offer with the most expected tokens, of the sources that this way has; NO_OFFER when there is none."""
        limit = target.room
        if not limit or way is Way.OFF:
            return NO_OFFER
        found = target.proposals.following(target.committed, target.digest, limit) if way is Way.DRAFT else []
        token_ids = [token_id for token_id, _ in found]
        confidences = [confidence for _, confidence in found]
        drafted = Offer(Origin.DRAFT, token_ids, target.acceptance.of_confidences(confidences), confidences, 0)
        match = self._match(target, limit) if self._suffix_drafting else NO_MATCH
        survival = target.acceptance.of_match(match.length, len(match.token_ids))
        if sum(survival) > sum(drafted.survival):
            return Offer(Origin.SUFFIX, match.token_ids, survival, [], match.length)
        return drafted if token_ids else NO_OFFER

    def remember(self, target: TargetSequence) -> None:
        """Keeps what a sequence produced for those to come."""
        if not self._suffix_drafting or not target.max_draft_tokens:
            return
        root = target.sequence.roots.own
        history = self._histories.get(root) or History(_HISTORY_TOKENS)
        history.add(target.produced())
        self._histories[root] = history

    def _match(self, target: TargetSequence, limit: int) -> Match:
        if not target.catch_up(_CATCH_UP_TOKENS):
            return NO_MATCH
        own = target.suffixes.match(limit)
        history = self._histories.get(target.sequence.roots.own)
        if history is None:
            return own
        other = history.match(target.sequence.token_ids[max(0, target.committed - 32) : target.committed], limit)
        return other if other.length > own.length else own
