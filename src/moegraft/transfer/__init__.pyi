# What type checkers and editors see of the names that __init__.py imports on first use.
from moegraft.transfer.apply import apply_plan as apply_plan
from moegraft.transfer.diff import Comparison as Comparison
from moegraft.transfer.diff import compare_checkpoints as compare_checkpoints
from moegraft.transfer.live import composed as composed
from moegraft.transfer.live import configuration_patches as configuration_patches
from moegraft.transfer.live import lm as lm
from moegraft.transfer.live import patches as patches
from moegraft.transfer.plan import Plan as Plan
from moegraft.transfer.plan import plan_transfer as plan_transfer
from moegraft.transfer.recipe import Selection as Selection
from moegraft.transfer.recipe import TransferRecipe as TransferRecipe
from moegraft.transfer.recipe import component_recipe as component_recipe
from moegraft.transfer.summary import summarize_checkpoint as summarize_checkpoint
