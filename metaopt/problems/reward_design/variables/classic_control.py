"""Variables of classic control, with formulas for heights and energies."""

from __future__ import annotations

from metaopt.environments import Acrobot, CartPole, MountainCar
from metaopt.problems.reward_design.variables.quantities import Quantity, Variables


def mountain_car(task: MountainCar) -> Variables:
    """Return position, velocity, height and energy of MountainCar.

    height = sin(3 p), of the track, whose slope is 3 cos(3 p); from -1 in the valley to 1.
    energy = v^2 / 2 + (gravity / 3) sin(3 p), in units of position^2 / step^2: without the engine,
    dv = -gravity cos(3 p) conserves it but for the length of a step.
    """
    return Variables(
        (
            Quantity("p", f"position of the car, from -1.2 to 0.6, with the goal at {task.goal:g}"),
            Quantity(
                "v", "velocity of the car per step, from -0.07 to 0.07, positive to the right"
            ),
        ),
        (
            Quantity("height", "height of the track at the car, from -1 to 1", "sin(3 * p)"),
            Quantity(
                "energy",
                "kinetic and potential energy of the car, in position^2 / step^2",
                f"0.5 * square(v) + {task.gravity / 3:.12g} * sin(3 * p)",
            ),
        ),
        action="0 pushes left, 1 not at all, 2 right",
        terminated="1 if the car reached the goal in this step, else 0; 0 at a time limit",
    )


def cart_pole(task: CartPole) -> Variables:
    """Return position, velocity, angle, spin, uprightness and energy of CartPole.

    upright = cos(angle). With cart M, pole m of length 2 l and moment m l^2 / 3 about its centre,
    energy = (M + m) v^2 / 2 + m l v spin cos(angle) + (2 / 3) m l^2 spin^2 + m g l cos(angle),
    in J, from the cart's height: conserved where no force acts, but for the length of a step.
    """
    moment = task.pole_mass * task.half_length
    return Variables(
        (
            Quantity("p", f"position of the cart in m; beyond {task.position_limit:g} it falls"),
            Quantity("v", "velocity of the cart in m/s, positive to the right"),
            Quantity(
                "angle",
                f"angle of the pole in rad, 0 upright; beyond {task.angle_limit:.3g} it falls",
            ),
            Quantity("spin", "angular velocity of the pole in rad/s"),
        ),
        (
            Quantity("upright", "1 for an upright pole, less for a leaning one", "cos(angle)"),
            Quantity(
                "energy",
                "kinetic and potential energy of cart and pole in J",
                f"{(task.cart_mass + task.pole_mass) / 2:.12g} * square(v)"
                f" + {moment:.12g} * v * spin * cos(angle)"
                f" + {2 / 3 * moment * task.half_length:.12g} * square(spin)"
                f" + {moment * task.gravity:.12g} * cos(angle)",
            ),
        ),
        action="0 pushes left, 1 right",
        terminated="1 if the pole fell or the cart left the track in this step, else 0; "
        "0 at a time limit",
    )


def acrobot(task: Acrobot) -> Variables:
    """Return cosine, sine and spin of both links of Acrobot, height of the tip and energy.

    With angles a (of the first link, 0 hanging) and b (of the second to the first),
    height = -cos a - cos(a + b), of the tip above the pivot in link lengths: the goal is 1;
    energy = d1 spin_a^2 / 2 + d2 spin_a spin_b + (m2 c2^2 + I) spin_b^2 / 2
    - (m1 c1 + m2 l1) g cos a - m2 c2 g cos(a + b), in J, with
    d1 = m1 c1^2 + m2 (l1^2 + c2^2 + 2 l1 c2 cos b) + 2 I and d2 = m2 (c2^2 + l1 c2 cos b) + I
    (Sutton and Barto, 2018, section 11.3 in the first edition): conserved without torque.
    """
    m1, m2, l1 = task.mass_1, task.mass_2, task.length_1
    c1, c2, inertia, g = task.centre_1, task.centre_2, task.inertia, task.gravity
    lower = m2 * c2**2 + inertia
    upper = m1 * c1**2 + m2 * l1**2 + inertia + lower
    coupling = m2 * l1 * c2
    both = "(cos_a * cos_b - sin_a * sin_b)"  # cos(a + b)
    links = [("a", "first link, 0 hanging down"), ("b", "second link to the first")]
    quantities = [
        Quantity(f"{function}_{link}", f"{word} of the angle of the {what}")
        for link, what in links
        for function, word in (("cos", "cosine"), ("sin", "sine"))
    ]
    quantities += [
        Quantity(f"spin_{link}", f"angular velocity of the {what.split(',')[0]} in rad/s")
        for link, what in links
    ]
    return Variables(
        tuple(quantities),
        (
            Quantity(
                "height", "height of the tip above the pivot in link lengths, the goal is 1",
                f"-cos_a - {both}",
            ),
            Quantity(
                "energy",
                "kinetic and potential energy of both links in J",
                f"{upper / 2:.12g} * square(spin_a) + {coupling:.12g} * cos_b * square(spin_a)"
                f" + {lower:.12g} * spin_a * spin_b + {coupling:.12g} * cos_b * spin_a * spin_b"
                f" + {lower / 2:.12g} * square(spin_b)"
                f" - {(m1 * c1 + m2 * l1) * g:.12g} * cos_a - {m2 * c2 * g:.12g} * {both}",
            ),
        ),
        action="0 torque to the left (-1 N m), 1 none, 2 torque to the right (+1 N m)",
        terminated="1 if the tip reached the goal in this step, else 0; 0 at a time limit",
    )  # fmt: skip
