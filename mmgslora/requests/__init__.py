"""The life of a request after its training: continued, taken back, handed on, verified."""

from mmgslora.records.ledger import Ledger
from mmgslora.requests.contents import contents
from mmgslora.requests.continuation import continued_config
from mmgslora.requests.export import export, files_to_destroy
from mmgslora.requests.measure import measure
from mmgslora.requests.merging import add, merge
from mmgslora.requests.revoke import revoke
from mmgslora.requests.sequence import RequestSequence
from mmgslora.requests.verify import verify

__all__ = [
    'Ledger',
    'RequestSequence',
    'add',
    'contents',
    'continued_config',
    'export',
    'files_to_destroy',
    'measure',
    'merge',
    'revoke',
    'verify',
]
