# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""False alarms and delays of the monitor of reward hacking, measured on healthy and on hacked runs."""
