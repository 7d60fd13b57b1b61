from guda_core.api import Answer as Answer
from guda_core.api import attribute as attribute
from guda_core.api import best_caption as best_caption
from guda_core.api import generate as generate
from guda_core.api import load_groups as load_groups
from guda_core.api import load_model as load_model
from guda_core.api import make_groups as make_groups
from guda_core.errors import GudaError as GudaError
from guda_core.many import attribute_many as attribute_many
from guda_core.offline import draft as draft
from guda_core.offline import unlearn as unlearn
from guda_core.records import Attribution as Attribution
from guda_core.records import Group as Group
from guda_core.records import GroupScore as GroupScore
from guda_core.records import GroupSet as GroupSet
from guda_core.records import Query as Query
from guda_core.records import Scope as Scope
from guda_core.scoring.asking import Results as Results

__version__: str
