"""PPO and A2C: Stable-Baselines3's algorithms with a faster rollout and update.

Read ``ppo.py`` (or ``a2c.py``) first: it holds the loss and the loop over minibatches.
``update.py`` has the gradient step, ``action_evaluation.py`` the forward pass, and ``losses.py``
the terms that PPO and A2C share.
"""
