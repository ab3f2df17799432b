# %% [markdown]
# # Distil a network of your own
#
# A network and a data loader of one's own, two moons in the plane, and a student of four steps in the place of a
# teacher of 64 steps of two evaluations each. No settings files: all are objects. `docs/python.md` has the rest.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fewstep

IMAGES = 400_000  # examples that each training sees; a minute on two cores
torch.manual_seed(0)

# %% [markdown]
# ## The data
#
# Any iterable of `(examples, labels)` does. `DataFacts` says what is in them: a name, the shape of an example, the
# number of classes, and a range that holds all values. Scaled to a standard deviation near 1 they suit diffusion best.

# %%
points, classes = make_moons(10_000, noise=0.05, random_state=0)
examples = torch.tensor((points - points.mean(0)) / points.std(0)).float()
loader = DataLoader(TensorDataset(examples, torch.tensor(classes)), batch_size=500, shuffle=True, drop_last=True)
facts = fewstep.DataFacts("moons", shape=(2,), num_classes=2, low=-4.0, high=4.0)

# %% [markdown]
# ## The network
#
# Any module with `forward(z, log_snr, label, w)`. The label `num_classes` means "no class". The guidance weight `w` is
# None for a teacher; a student is told it, and begins as its teacher where what `w` meets is zero at first.


# %%
class Network(nn.Module):
    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.point, self.noise = nn.Linear(2, width), nn.Linear(8, width)
        self.label, self.weight = nn.Embedding(3, width), nn.Linear(1, width, bias=False)
        nn.init.zeros_(self.weight.weight)
        self.first = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.second = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, z, log_snr, label, w):
        angle = log_snr[:, None] * torch.tensor([0.1, 0.2, 0.4, 0.8], device=z.device)
        h = self.point(z) + self.noise(torch.cat([angle.sin(), angle.cos()], 1)) + self.label(label)
        if w is not None:
            h = h + self.weight(w[:, None])
        return self.second(h + self.first(h))


# %% [markdown]
# ## The teacher
#
# A network that is trained already is wrapped: `fewstep.as_model(network, facts, prediction="x")`. Here it is trained
# first, to predict v with a tenth of the labels dropped.

# %%
training = fewstep.Training(images=IMAGES, learning_rate=2e-3)
teacher = fewstep.distil(Network(), loader, facts=facts, method=fewstep.methods.Teacher(training=training))

# %% [markdown]
# ## The student
#
# Any method of `fewstep.methods`. A method that starts from a guided student, of one evaluation a step, gets one first.

# %%
student = fewstep.distil(
    teacher, loader, method=fewstep.methods.Tract(time_schedule=(64, 4), training=training), w=(0.0, 4.0)
)
print(student.card.label, "of", student.card.num_steps, "steps, w of", student.card.w_min, "to", student.card.w_max)

# %% [markdown]
# ## Sample, save, load
#
# A file holds weights and a description, and no code: a network of your own is given when it is loaded.

# %%
student.save("student.safetensors")
student = fewstep.load("student.safetensors", network=Network())
labels = [0, 1] * 500
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True)
shown = {
    "data": examples[:1000],
    "teacher, 64 x 2 evaluations": teacher.sample(labels, steps=64, w=0.0),
    "student, 4 evaluations": student.sample(labels, w=0.0),
}
for axis, (title, x) in zip(axes, shown.items(), strict=True):
    axis.scatter(*x.T, s=2)
    axis.set_title(title)
figure.savefig("two_moons.png")
