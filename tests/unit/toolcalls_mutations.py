"""All mutations: of single replies, and of conversations."""

from __future__ import annotations

from tests.unit.toolcalls_mutations_of_calls import MUTATIONS as OF_CALLS
from tests.unit.toolcalls_mutations_of_conversations import MUTATIONS as CONVERSATION_MUTATIONS
from tests.unit.toolcalls_mutations_of_replies import MUTATIONS as OF_REPLIES
from tests.unit.toolcalls_mutations_of_streams import MUTATIONS as OF_STREAMS

__all__ = ["CONVERSATION_MUTATIONS", "MUTATIONS"]

MUTATIONS = (*OF_REPLIES, *OF_CALLS, *OF_STREAMS)
