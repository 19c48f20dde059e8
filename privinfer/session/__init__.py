"""Who takes part and under which agreement: identities and the session file."""

from privinfer.session.fragment import Fragment
from privinfer.session.identity import Identity, PublicIdentity
from privinfer.session.manifest import Manifest, Party

__all__ = ["Fragment", "Identity", "Manifest", "Party", "PublicIdentity"]
