import pytest

TASK = """
import torch
import curvprobe as cp

def task():
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 24, dtype=torch.float64)[:, None]
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    return cp.Task(model, cp.losses.mse, (x[::2], x[::2].sin()), (x[1::2], x[1::2].sin()), description="a sine")

def wrong():
    return 3

def broken():
    raise ValueError("in the user's own code")

def noisy():
    made = task()
    return cp.Task(torch.nn.Sequential(made.model, torch.nn.Dropout()), made.loss, made.data)
"""


@pytest.fixture
def task_file(tmp_path):
    path = tmp_path / "my_task.py"
    path.write_text(TASK)
    return path
